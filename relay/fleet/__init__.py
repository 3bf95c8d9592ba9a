"""What is known about agents: cohorts, sums and views. No I/O."""
