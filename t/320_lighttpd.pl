# RegPilot behind lighttpd: the suite of RegPilot::Conformance.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Conformance;

conformance(
	'lighttpd',
	request_id => 0,
	retry_after => undef,
	large_header => [ 431, 'HEADERS_TOO_LARGE' ],
	aborts_late => 1,
	unknown_method => 501,
	asks_again_after => 1,
	reloaded => [
		'lighttpd.conf', 'server.tag = "lighttpd"', 'server.tag = "new"', sub { $_[0]{headers}{server} eq 'new' }
	]);
