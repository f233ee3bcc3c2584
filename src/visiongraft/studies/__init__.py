"""Study and Claim: a claim of a paper, measured; and the gallery page."""
