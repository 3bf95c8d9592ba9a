"""The relay: a regional node. Only `app` creates adapters; everything else receives what it needs."""
