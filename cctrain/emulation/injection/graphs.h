// Collectives in graphs: each is behind a delay on the GPU, but only its graph's launch is a call that is met.
#define MAX_GRAPHS 256
static struct { const void *handle; unsigned num_collectives; } known_graphs[MAX_GRAPHS];  // captured, or to be launched
static unsigned num_known, oldest_known;
static pthread_mutex_t graphs_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned num_captured_collectives;  // since a capture last ended: captures side by side share them out

// A handle may be that of a graph that is gone.
static void know_graph(const void *handle, unsigned num_collectives) {
  pthread_mutex_lock(&graphs_lock);
  unsigned i = 0;
  while (i < num_known && known_graphs[i].handle != handle) i++;
  if (i == num_known && num_known == MAX_GRAPHS)
    i = oldest_known++ % MAX_GRAPHS;
  else if (i == num_known && num_collectives)
    num_known++;
  if (i < num_known) {
    known_graphs[i].handle = handle;
    known_graphs[i].num_collectives = num_collectives;
  }
  pthread_mutex_unlock(&graphs_lock);
}

static unsigned collectives_of(const void *handle) {
  unsigned found = 0;
  pthread_mutex_lock(&graphs_lock);
  for (unsigned i = 0; i < num_known; i++)
    if (known_graphs[i].handle == handle) found = known_graphs[i].num_collectives;
  pthread_mutex_unlock(&graphs_lock);
  return found;
}
