"""The programs that tests need and pip does not install; `python -m tests.programs` says which are
missing.
"""

import os
import shutil
import sys

# by the package of Debian that brings them: names that will do
PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "nodejs": ("node",),
}


def find_program(package: str) -> str | None:
    """Return the path of a program, None if it is not installed."""
    paths = map(shutil.which, PROGRAMS[package])
    return next(filter(None, paths), None)


def missing_packages() -> list[str]:
    """Return the packages whose program is not installed."""
    return [package for package in PROGRAMS if not find_program(package)]


def main() -> int:
    """Print which tests were skipped for want of a program, if any; an error where CI=true."""
    missing = missing_packages()
    if not missing:
        return 0
    line = "=" * 66
    print(
        f"{line}\nNOT TESTED: tests that need {' and '.join(missing)} were skipped. Install:\n"
        f"  apt-get install {' '.join(missing)}"
        f"        (macOS: brew install --cask chromium; brew install node)\n{line}",
        file=sys.stderr,
    )
    return int(os.environ.get("CI") == "true")


if __name__ == "__main__":
    sys.exit(main())
