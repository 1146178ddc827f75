import CShims
import XCTest

final class MatrixTests: KernelTestCase {
    /// Operands of a product, with b and c wider than their columns.
    private struct Product {
        let m, n, k: Int
        let transposed: Bool
        let a, b: Buffer<Float>
        var ldb: Int { n + 2 }
        var ldc: Int { n + 5 }
        var aRow: Int { transposed ? 1 : k + 1 }
        var aCol: Int { transposed ? m + 3 : 1 }

        init(_ m: Int, _ n: Int, _ k: Int, transposed: Bool, _ random: inout SplitMix64) {
            (self.m, self.n, self.k, self.transposed) = (m, n, k, transposed)
            a = Buffer(random.floats(transposed ? k * (m + 3) : m * (k + 1)))
            b = Buffer(random.floats(k * (n + 2)))
        }

        func run(
            _ build: Build, _ c: Buffer<Float>, rows: Range<Int>, columns: Range<Int>, depth: Range<Int>,
            accumulate: Bool
        ) {
            build.kernels.chain_gemm(
                c.pointer + rows.lowerBound * ldc + columns.lowerBound, Int64(ldc),
                a.pointer + rows.lowerBound * aRow + depth.lowerBound * aCol, Int64(aRow), Int64(aCol),
                b.pointer + depth.lowerBound * ldb + columns.lowerBound, Int64(ldb), Int64(rows.count),
                Int64(columns.count), Int64(depth.count), accumulate ? 1 : 0)
        }
    }

    /// A chain of multiply-adds is a plain loop, so its bits are known.
    func testProductIsAChain() {
        var random = SplitMix64(60)
        let sizes = [0, 1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33, 50]
        for build in Build.all {
            for _ in 0..<150 {
                let m = (sizes + [70]).randomElement(using: &random)!
                let n = (sizes + [130, 150]).randomElement(using: &random)!
                let k = (sizes + [255, 256, 257, 520]).randomElement(using: &random)!
                for (transposed, accumulate) in [(false, false), (false, true), (true, false), (true, true)] {
                    let product = Product(m, n, k, transposed: transposed, &random)
                    let before = initial(m * product.ldc, accumulate: accumulate, &random)
                    let c = Buffer(before)
                    product.run(build, c, rows: 0..<m, columns: 0..<n, depth: 0..<k, accumulate: accumulate)
                    var expected = before
                    for i in 0..<m {
                        for j in 0..<n {
                            var sum = accumulate ? before[i * product.ldc + j] : 0
                            for p in 0..<k {
                                let left = product.a.pointer[i * product.aRow + p * product.aCol]
                                let right = product.b.pointer[p * product.ldb + j]
                                sum = build.name == "baseline" ? sum + left * right : sum.addingProduct(left, right)
                            }
                            expected[i * product.ldc + j] = sum
                        }
                    }
                    expectSameBits(c.elements, expected, "\(build.name) \(m)x\(n)x\(k)")
                }
            }
        }
    }

    func testProductDoesNotDependOnTheCut() {
        var random = SplitMix64(61)
        let (m, n, k) = (93, 151, 300)
        for build in Build.all {
            for transposed in [false, true] {
                let product = Product(m, n, k, transposed: transposed, &random)
                let start = random.floats(m * product.ldc)
                let whole = Buffer(start)
                product.run(build, whole, rows: 0..<m, columns: 0..<n, depth: 0..<k, accumulate: true)
                for _ in 0..<20 {
                    let i = Int.random(in: 1..<m, using: &random)
                    let j = Int.random(in: 1..<n, using: &random)
                    let p = Int.random(in: 1..<k, using: &random)
                    let cut = Buffer(start)
                    for rows in [0..<i, i..<m] {
                        for columns in [0..<j, j..<n] {
                            for depth in [0..<p, p..<k] {
                                product.run(build, cut, rows: rows, columns: columns, depth: depth, accumulate: true)
                            }
                        }
                    }
                    expectSameBits(cut.elements, whole.elements, "\(build.name) cut at \(i), \(j), \(p)")
                }
            }
        }
    }

    func testANaNStaysInItsRowAndColumn() {
        var random = SplitMix64(62)
        for build in Build.all {
            let product = Product(10, 40, 20, transposed: false, &random)
            product.b.pointer[7 * product.ldb + 33] = .nan
            let c = Buffer(repeating: unread, count: 10 * product.ldc)
            product.run(build, c, rows: 0..<10, columns: 0..<40, depth: 0..<20, accumulate: false)
            for i in 0..<10 {
                for j in 0..<40 { XCTAssertEqual(c.pointer[i * product.ldc + j].isNaN, j == 33, build.name) }
            }
        }
    }

    func testTranspose() {
        var random = SplitMix64(63)
        for build in Build.all {
            for rows in [0, 1, 15, 16, 17, 33, 64] {
                for cols in [0, 1, 15, 16, 17, 48, 65] {
                    let (ldx, ldout) = (cols + 2, rows + 3)
                    let x = Buffer(random.floats(rows * ldx))
                    let before = random.floats(cols * ldout)
                    let out = Buffer(before)
                    build.kernels.transpose(
                        out.pointer, Int64(ldout), x.pointer, Int64(ldx), Int64(rows), Int64(cols))
                    var expected = before
                    for row in 0..<rows {
                        for col in 0..<cols { expected[col * ldout + row] = x.pointer[row * ldx + col] }
                    }
                    expectSameBits(out.elements, expected, "\(build.name) \(rows)x\(cols)")
                }
            }
        }
    }
}
