"""`python -m abridged`, as `accelerate launch -m abridged` needs it."""

from abridged.cli import main

if __name__ == "__main__":
    main()
