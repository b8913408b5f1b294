"""``python -m pixyproxy`` is the same as ``pixyproxy``."""

from pixyproxy.cli import main

if __name__ == "__main__":
    main()
