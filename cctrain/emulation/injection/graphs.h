// Collectives in graphs: each is behind a delay on the GPU, but only its graph's launch is a call that is met. Known
// are graphs that are launched as they were captured: not graphs in others, clones, and updates of what is launched.
#define MAX_GRAPHS 256
static struct {
  const void *handle;  // of a graph captured, or to be launched; NULL: free
  unsigned num_collectives;
} known_graphs[MAX_GRAPHS];
static unsigned num_known, oldest_known;
static pthread_mutex_t graphs_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned num_captured_collectives;  // since a capture last ended: captures side by side share them out

static unsigned slot_of(const void *handle) {
  unsigned i = 0;
  while (i < num_known && known_graphs[i].handle != handle) i++;
  return i;
}

// With no collectives the handle is forgotten: another graph may have it next.
static void know_graph(const void *handle, unsigned num_collectives) {
  pthread_mutex_lock(&graphs_lock);
  unsigned i = slot_of(handle);
  if (i == num_known && num_collectives && (i = slot_of(NULL)) == num_known)
    i = num_known < MAX_GRAPHS ? num_known++ : oldest_known++ % MAX_GRAPHS;
  if (i < num_known) {
    known_graphs[i].handle = num_collectives ? handle : NULL;
    known_graphs[i].num_collectives = num_collectives;
  }
  pthread_mutex_unlock(&graphs_lock);
}

static unsigned collectives_of(const void *handle) {
  pthread_mutex_lock(&graphs_lock);
  unsigned i = slot_of(handle), found = i < num_known ? known_graphs[i].num_collectives : 0;
  pthread_mutex_unlock(&graphs_lock);
  return found;
}
