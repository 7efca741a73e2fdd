module github.com/selvage-net/selvage/e2e

go 1.26.0

require github.com/selvage-net/selvage v0.0.0

replace github.com/selvage-net/selvage => ../
