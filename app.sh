#!/usr/bin/env bash
# How an s2i image starts the function; a pack image reads Procfile. `exec`, so that SIGTERM
# reaches Python, which commits before it ends.
#
# pip has compiled the dependencies in the image. Our own modules are compiled here, at every
# start, in some 50 ms; compileall in this script would take the same time, and the root file
# system may be read-only.
exec python -m metrics serve "$@"
