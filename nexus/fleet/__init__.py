"""What backends there are, how they are, and what the processes of one gateway share about them."""
