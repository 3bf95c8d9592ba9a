"""Where bytes rest. Stores keep keys → bytes; owners encode."""
