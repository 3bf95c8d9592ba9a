"""Who calls, as whom, until when. No I/O: keys, look-ups and the time are arguments."""
