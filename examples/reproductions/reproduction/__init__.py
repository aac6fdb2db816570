"""What the reproductions share: their options, their finished runs, their pages."""
