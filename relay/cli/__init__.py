"""The commands. They parse words and print; what they do is elsewhere."""
