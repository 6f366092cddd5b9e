"""Photos that a page uploads: how many and how large they may be, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from training.networks.generator import Generator

LARGEST_PHOTO = 10 << 20  # bytes
MOST_PHOTOS = 5  # of a page
LARGEST_PART = 1 << 20  # bytes of a message

UPLOADS = ("FileTransferStartUpload", "FileTransferPart")  # messages

OnProgress = Callable[[str, float, float], None]
"""Told the phase, how much of it is done (0 to 1), and the loss."""

Inverter = Callable[[Generator, bytes, bool, OnProgress], tuple[Generator, dict[str, Any]]]
"""Generator, a photo's bytes, and whether it is cut out already to the generator that shows the
person in it and an entry of its latents; raises a UserError for photos that cannot be used.
"""

# Dropping a photo anywhere on the page is choosing it with the button.
DROP_SCRIPT = b"""<script>
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const input = document.querySelector("input[type=file]");
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
</script></head>"""


@dataclass
class UploadGate:
    """Says which messages of one page's uploads are passed on."""

    count: int = 0
    left: dict[str, int] = field(default_factory=dict)  # bytes that an upload may still send

    def allows(self, message: dict[str, Any]) -> bool:
        """Whether a message may pass: the start of an upload, or a part of one that may."""
        key, kind = message.get("transfer_uuid"), message["type"]
        if not isinstance(key, str):
            return False
        if kind == UPLOADS[0]:
            size, parts = message.get("size_bytes"), message.get("part_count")
            if self.count >= MOST_PHOTOS or type(size) is not int or type(parts) is not int:
                return False
            if key in self.left or not (0 < size <= LARGEST_PHOTO and 0 < parts <= size):
                return False
            self.count += 1
            self.left[key] = size
            return True
        content = message.get("content")
        if not isinstance(content, bytes) or key not in self.left:
            return False
        self.left[key] -= len(content)
        return self.left[key] >= 0
