"""Who may use the gateway, and what: keys, teams, and what each of them may use. No I/O."""
