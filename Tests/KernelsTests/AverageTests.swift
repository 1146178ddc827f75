import CShims
import XCTest

final class AverageTests: KernelTestCase {
    func testAnAverageGoesItsShareOfTheWay() {
        var random = SplitMix64(40)
        for build in Build.all {
            for n in lengths {
                for share: Double in [0, 1e-9, 0.001, 0.3, 0.5, 0.9, 0.999, 1] {
                    let (old, new) = (random.floats(n), random.floats(n))
                    let (average, x) = (Buffer(old), Buffer(new))
                    build.kernels.move_average(average.pointer, x.pointer, Float(share), Float(1 - share), Int64(n))
                    for (i, found) in average.elements.enumerated() {
                        let (a, b) = (Double(old[i]), Double(new[i]))
                        // The difference, its product and the sum are rounded, each relative to numbers up to 4.
                        XCTAssertEqual(
                            Double(found), a + share * (b - a), accuracy: 3 * 4 * 0x1p-24, "\(build.name) \(share)")
                        if share == 0 { XCTAssertEqual(found, old[i]) }
                        if share == 1 { XCTAssertEqual(found, new[i]) }
                    }
                    expectSameBits(x.elements, new, build.name)
                }
            }
        }
    }

    func testWhatDoesNotMoveIsItsOwnAverage() {
        var random = SplitMix64(41)
        for build in Build.all {
            for share: Float in [1e-9, 0.25, 0.5, 0.75] {
                let values = random.floats(100)
                let (average, x) = (Buffer(values), Buffer(values))
                build.kernels.move_average(average.pointer, x.pointer, share, 1 - share, 100)
                expectSameBits(average.elements, values, build.name)
            }
        }
    }

    func testExchangeKeepsEveryBit() {
        var random = SplitMix64(42)
        for build in Build.all {
            for n in lengths {
                let (left, right) = (random.specialFloats(n), random.specialFloats(n))
                let (a, b) = (Buffer(left), Buffer(right))
                build.kernels.exchange(a.pointer, b.pointer, Int64(n))
                expectSameBits(a.elements, right, build.name)
                expectSameBits(b.elements, left, build.name)
            }
        }
    }
}
