// Package informer brings the cluster's objects to those who act on them: from
// the Kubernetes API or from a directory of manifests, through client-go's
// SharedIndexInformers either way, trimmed to what policy needs and handed on
// in batches.
//
//	Kubernetes ─┐
//	            ├─> Source ─> reflector ─> transform ─> store
//	Manifests  ─┘                                         │
//	                                     sink <─ batch <──┘
//
// A Source answers List and Watch for each Kind. What it yields are whole API
// objects; before anything is stored they become *policy.Pod,
// *policy.Namespace, *policy.Node, *policy.Pool, *policy.ServiceCIDR, or a
// NetworkPolicy without the metadata that nobody reads, with strings and label
// sets shared between objects. The events of all kinds are then gathered,
// squashed by object, and given to one Sink, one call at a time.
//
// Nothing is given away before the first lists of all kinds are complete: half
// a cluster would look like one whose policies allow less, or more, than they do.
// Kinds that a server need not have may come and go meanwhile.
package informer
