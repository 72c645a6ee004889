"""Tasks that learn from judgements of answers: pairs of a better and a worse one, good and bad ones, rewards."""
