"""Host selection: which host gets a server, claimed in Placement before the host hears of it."""
