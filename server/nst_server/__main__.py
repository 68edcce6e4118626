"""`python -m nst_server` is `nst-server`."""

from nst_server.main import main

main()
