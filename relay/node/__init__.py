"""The relay: a regional node. `app` alone builds adapters; everything else is given what it needs."""
