"""The state that a gateway's processes share: slots, load table, circuits, snapshot, history."""
