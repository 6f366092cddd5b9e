"""The generator itself in a web page: a folder of ONNX graphs which onnxruntime-web runs in the
browser, so that new identities are made there.

`runtime` gets onnxruntime-web's files, `write` writes the folder from them, the graphs and the
parts in `page/`.
"""

from media.web.write import page_files, write_web_page

__all__ = ["page_files", "write_web_page"]
