"""Network parts beside the plain nnU-Net: taps, heads, teachers, queues."""
