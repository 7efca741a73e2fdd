// Package verdict has what benchmarks need to tell of their figures: the machine
// that they were made on, tables, and bars with the judgement on them.
package verdict
