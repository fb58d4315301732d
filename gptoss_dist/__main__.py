"""`python -m gptoss_dist`."""

from gptoss_dist.console import console

if __name__ == "__main__":
    console()
