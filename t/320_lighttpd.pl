# RegPilot behind lighttpd: the suite of RegPilot::Conformance.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Conformance;

conformance(
	'lighttpd',
	request_id => 0,
	retry_after => 0,
	large_header => [ 431, 'HEADERS_TOO_LARGE' ],
	died => 500,
	aborts_late => 1,
	unknown_method => 501,
	asks_again_after => 2.1,
	reloaded => [
		'lighttpd.conf', 'server.tag = "lighttpd"', 'server.tag = "new"', sub { $_[0]{headers}{server} eq 'new' }
	]);
