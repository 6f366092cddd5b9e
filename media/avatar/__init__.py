"""Heads in one web page that needs no server: the browser renders the exported tri-planes itself.

`planes` compresses a head's planes, `scene` describes rendering and cameras in plain values,
`document` puts both and the program in `page/` (HTML, CSS, JavaScript, GLSL) together,
`write` does all of it for seeds.
"""

from media.avatar.write import write_avatars

__all__ = ["write_avatars"]
