"""What each region is to hold."""
