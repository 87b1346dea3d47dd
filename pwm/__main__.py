"""`python -m pwm`: the program, run by exactly this interpreter."""

from pwm.cli.main import main

if __name__ == "__main__":
    main()
