"""`python -m jaxresearch` is `jaxresearch`."""

from jaxresearch.cli import main

if __name__ == "__main__":
    main()
