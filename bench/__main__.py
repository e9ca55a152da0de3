"""`python -m bench` measures this machine."""

from bench.run import main

main()
