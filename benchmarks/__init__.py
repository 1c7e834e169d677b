"""What `make bench` and `make account` run: headwise beside its peers and beside the machine's own limits.

`bench` is the entry; `rows` says what is measured, `array_peers` and `model_peers` who else does it,
`measure` how it is timed, `results` what comes out, `report` and `chart` how it is shown. `fresh` measures
whole processes and `callers` many threads. `convert` makes the forms of MiniLM that the peers read, in the
folder that `setup_peers.sh` sets up.

`account` says where the time of models goes; `account_child` is one build at work, `account_table` the
arithmetic and the table.
"""
