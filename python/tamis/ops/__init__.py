"""One file per operator: checks, torch registration, fake version, autograd."""
