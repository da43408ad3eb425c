"""The wire contract, generated from `proto/sfl/v1` by `make proto`; not edited by hand."""
