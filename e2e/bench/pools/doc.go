// Package pools measures what IP pools cost: the first packet of a connection that
// leaves them and of one that stays inside, packets of connections that are there,
// and a pool that comes or goes. It compares the product with one plain rule that
// masquerades and with flannel's rules. Command bench-pools runs it all and judges the
// figures; README.md tells how they are made and how to read them.
//
// Its worlds are those of package bench. All of it needs root.
package pools
