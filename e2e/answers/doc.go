// Package answers asks agents what operators ask: it runs the commands on a node, and
// reads the metrics of its agent. Its tests hold what they say against real packets, and
// flood an agent with packets that policy denies.
package answers
