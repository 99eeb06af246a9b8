"""The service of one compute host: records, builds, images, inventory, reconciliation."""
