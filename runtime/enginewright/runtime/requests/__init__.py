"""What was asked for, as it runs, and what is given back."""
