import GradAccum
import XCTest

final class SplitTests: XCTestCase {
    func testSplitsByCountBySizeAndByTokens() throws {
        XCTAssertEqual(Array(try Split(samples: 7, microBatches: 3)), [0..<3, 3..<5, 5..<7])
        XCTAssertEqual(Array(try Split(samples: 7, size: 3)), [0..<3, 3..<6, 6..<7])
        XCTAssertEqual(Array(try Split(samples: 6, size: 3)), [0..<3, 3..<6])
        XCTAssertEqual(Array(try Split(lengths: [3, 3, 1, 5], tokenBudget: 6)), [0..<2, 2..<4])
        XCTAssertEqual(Array(try Split(lengths: [3, 3, 1, 5], tokenBudget: 6, isPadded: true)), [0..<2, 2..<3, 3..<4])
        XCTAssertEqual(Array(try Split(lengths: [0, 0, 6, 0], tokenBudget: 6, isPadded: true)), [0..<2, 2..<3, 3..<4])
    }

    func testAnySplitCoversTheBatchInOrder() throws {
        var generator = SplitMix64(5)
        for _ in 0..<200 {
            let lengths = (0..<Int.random(in: 1...40, using: &generator)).map { _ in
                Int64.random(in: 0...9, using: &generator)
            }
            let budget = Int.random(in: 9...30, using: &generator)
            for split in [
                try Split(samples: lengths.count, microBatches: Int.random(in: 1...lengths.count, using: &generator)),
                try Split(samples: lengths.count, size: Int.random(in: 1...50, using: &generator)),
                try Split(lengths: lengths, tokenBudget: budget),
                try Split(lengths: lengths, tokenBudget: budget, isPadded: true),
            ] {
                XCTAssertEqual(split.flatMap { $0 }, Array(lengths.indices))
                XCTAssert(split.allSatisfy { !$0.isEmpty })
            }
        }
    }

    func testLargeNumbersDoNotOverflow() throws {
        let split = try Split(samples: .max, microBatches: .max)
        XCTAssertEqual(split.count, .max)
        XCTAssertEqual(split[.max - 1], (.max - 1)..<(.max))
        XCTAssertEqual(Array(try Split(samples: .max, size: .max)), [0..<(.max)])
        XCTAssertEqual(Array(try Split(lengths: [.max, .max], tokenBudget: .max)), [0..<1, 1..<2])
    }

    func testMistakesAreNamed() {
        assertThrows(.invalidArgument, naming: "samples is 0") { _ = try Split(samples: 0, size: 1) }
        assertThrows(.invalidArgument, naming: "samples is 0") { _ = try Split(lengths: [], tokenBudget: 1) }
        assertThrows(.invalidArgument, naming: "micro_batches is 4") { _ = try Split(samples: 3, microBatches: 4) }
        assertThrows(.invalidArgument, naming: "size is 0") { _ = try Split(samples: 3, size: 0) }
        assertThrows(.invalidArgument, naming: "token_budget is 0") { _ = try Split(lengths: [1], tokenBudget: 0) }
        assertThrows(.invalidArgument, naming: "lengths[1] is 5") { _ = try Split(lengths: [1, 5], tokenBudget: 4) }
        assertThrows(.invalidArgument, naming: "lengths[0] is -1") { _ = try Split(lengths: [-1], tokenBudget: 4) }
    }
}
