package world

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// Watch counts packets at a hook of a namespace, with nftables.
type Watch struct {
	n     *Namespace
	table string
}

// Watch starts to count. hook is one of the hooks of table inet, priority
// places it among others; matches are expressions of nft by the name of their
// counter. A packet counts for every expression that it matches.
func (n *Namespace) Watch(ctx context.Context, hook string, priority int, matches map[string]string) (*Watch, error) {
	w := &Watch{n: n, table: fmt.Sprintf("watch_%s_%d", hook, priority+1000)}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", w.table, w.table, w.table)
	for name := range matches {
		fmt.Fprintf(&b, "\tcounter %s { }\n", name)
	}
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook %s priority %d\n", w.table, hook, priority)
	for name, match := range matches {
		fmt.Fprintf(&b, "\t\t%s counter name %q\n", match, name)
	}
	b.WriteString("\t}\n}\n")
	return w, n.NFT(ctx, b.String())
}

// Packets returns what was counted since Watch.
func (w *Watch) Packets(ctx context.Context) (map[string]uint64, error) {
	out, err := w.n.Run(ctx, "nft", "-j", "list", "counters", "table", "inet", w.table)
	if err != nil {
		return nil, err
	}
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("counters of %s in %s: %w", w.table, w.n.ID, err)
	}
	packets := map[string]uint64{}
	for _, o := range list.Nftables {
		if o.Counter != nil {
			packets[o.Counter.Name] = o.Counter.Packets
		}
	}
	return packets, nil
}
