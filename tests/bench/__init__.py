"""How fast and how small: ratios measured in one run, against what the parts below cost by themselves."""
