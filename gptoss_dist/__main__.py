"""`python -m gptoss_dist`."""

from gptoss_dist.cli import console

if __name__ == "__main__":
    console()
