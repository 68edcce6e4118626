"""`python -m nst_client` is `nst`."""

from nst_client.cli import main

main()
