"""Fine-tuning and the embedded model: imports core only."""
