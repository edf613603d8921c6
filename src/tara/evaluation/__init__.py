"""How good pictures are, subject by subject: protocols, finding, scores, honest intervals, a page."""
