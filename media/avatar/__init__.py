"""Heads in one web page that needs no server: the browser renders the exported tri-planes itself.

`planes` stores a head's planes in few bytes, `scene` says in plain values what is rendered and from
where, `document` puts both and the program in `page/` (HTML, CSS, JavaScript, GLSL) together,
`write` does all of it for seeds.
"""

from media.avatar.write import write_avatars

__all__ = ["write_avatars"]
