"""The coordinator: builds and trains anchors and banks, runs the rounds of a federation, and keeps their journal."""
