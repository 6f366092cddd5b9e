"""Write docs/settings.md from the declarations in settings.py:

python -m training.config.document > docs/settings.md
"""

from __future__ import annotations

import json

from training.config.settings import Config, Declared, config_sections, declared_settings
from training.config.settings import describe_type as type_in_words

INTRODUCTION = """# Settings

All settings of a run, as `training_options.json` and checkpoints hold them. `train.py --set
section.field=value` changes any of them (values in JSON, such as `true`, `null`, `[1, 0.5, 0]` or
`"ada"`; bare words will do); those with an option of their own name it. The defaults here are the
published ones; presets and `--sizes` change some of them: see [training.md](training.md). `train.py
--dry-run` prints what a run would have, and `train.py --config FILE` starts from such a file.

This page is written by `python -m training.config.document`.
"""


def document() -> str:
    """The page."""
    sections = config_sections(Config())
    parts = [INTRODUCTION]
    for section, values in sections.items():
        rows = [
            _row(name, declared)
            for name, declared in declared_settings().items()
            if name.startswith(f"{section}.")
        ]
        parts.append(
            f"## {section}\n\n{' '.join((values.__doc__ or '').split())}\n\n"
            "| Setting | Default | Values | Meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def _row(name: str, declared: Declared) -> str:
    about = declared.about
    meaning = about.help.partition("  [")[0] + (
        f" Option `{about.option}`." if about.option else ""
    )
    values = ", ".join(filter(None, (type_in_words(declared.hint), about.range)))
    cells = (f"`{name}`", f"`{json.dumps(declared.default)}`", values, meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(document(), end="")
