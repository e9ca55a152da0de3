"""What a lender of a machine runs."""
