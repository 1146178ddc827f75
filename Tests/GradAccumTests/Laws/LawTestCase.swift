import Foundation
import XCTest

/// The laws of the window, by the names that the table of `make laws` gives them.
enum Law: String {
    case splitInvariance = "split invariance"
    case trueWeights = "true weights"
    case scaling = "scaling is transparent"
    case noTrace = "a skip leaves no trace"
    case flatMemory = "flat memory"
    case oneClock = "one clock"
}

/// A test that says which laws it is of, and counts its cases.
///
/// Where `GRADACCUM_LAW_TALLY` names a file, a line per law is added to it for the table.
class LawTestCase: XCTestCase {
    /// How many times as many cases are asked for as usual.
    static let factor = ProcessInfo.processInfo.environment["GRADACCUM_LAW_FACTOR"].flatMap(Int.init) ?? 1

    private var laws: [Law] = []
    private var cases = 0

    override func setUp() { (laws, cases) = ([], 0) }

    /// The test at hand is one of these laws.
    func test(of laws: Law...) { self.laws = laws }

    /// Counts a case.
    func ran() { cases += 1 }

    override func tearDown() {
        XCTAssertFalse(laws.isEmpty, "\(name) does not say which laws it is of")
        let failed = (testRun?.totalFailureCount ?? 0) > 0 || cases == 0
        XCTAssertGreaterThan(cases, 0, "\(name) ran no case")
        guard let path = ProcessInfo.processInfo.environment["GRADACCUM_LAW_TALLY"], let file = fopen(path, "a") else {
            return
        }
        defer { fclose(file) }
        for law in laws {
            fputs(
                "{\"law\": \"\(law.rawValue)\", \"cases\": \(cases), \"failures\": \(failed ? 1 : 0), \"of\": \"swift\"}\n",
                file)
        }
    }
}
