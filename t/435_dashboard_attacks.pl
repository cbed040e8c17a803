# Those who try the dashboard's doors: what guesses, floods and other people's keys come to.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use RegPilot::FastCGI;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new(env => { REGPILOT_MAX_SESSIONS => 4 });
my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my %password = (alice => $site->add_person('alice', admin => 1));

# A call of the dashboard's API, by the holder of the cookie if there is one.
sub call
{
	my ($method, $path, $body, $cookie) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60)->request(
		$method,
		$site->url . "/dashboard/api/$path",
		{
			headers => {
				'X-RegPilot-Dashboard' => '1',
				'Content-Type' => 'application/json',
				($cookie ? (Cookie => "regpilot_session=$cookie") : ())
			},
			(defined $body ? (content => ref $body ? $json->encode($body) : $body) : ())
		});
	$answer->{code} = eval { $json->decode($answer->{content})->{code} } // '';
	($answer->{cookie}) = ($answer->{headers}{'set-cookie'} // '') =~ /^regpilot_session=([0-9a-f]{64});/;
	return $answer;
}

sub sign_in
{
	my ($role, $password, $cookie) = @_;
	return call('POST', 'session', { role => $role, password => $password // $password{$role} }, $cookie);
}

# The same as a client at that address does.
sub sign_in_from
{
	my ($address, $role, $password) = @_;
	my $connection = RegPilot::FastCGI->new($site);
	$connection->send(
		request(
			1,
			{
				REQUEST_METHOD => 'POST',
				REQUEST_URI => '/dashboard/api/session',
				CONTENT_TYPE => 'application/json',
				HTTP_X_REGPILOT_DASHBOARD => '1',
				REMOTE_ADDR => $address
			},
			$json->encode({ role => $role, password => $password })));
	return $connection->answer->{status};
}

# Bytes of memory that the responder has had at most.
sub peak
{
	return slurp_file('/proc/' . $site->responder_pid . '/status') =~ /^VmHWM:\s*(\d+) kB/m && $1 * 1024;
}

# --- a body costs no more than its client has sent, before anybody is known

my $before = peak();
my $answer = call('POST', 'session', '{"role":[' . join(',', ('{}') x 3_000_000) . ']}');
is("$answer->{status} $answer->{code}", '413 BODY_TOO_LARGE', 'who is not signed in cannot send a large body');
cmp_ok(peak() - $before, '<', 32 * 1024 * 1024, 'nor have much memory used');

# --- nobody on the way keeps an answer

my $cookie = sign_in('alice')->{cookie};
my $project = $json->decode(call('POST', 'projects', { name => 'a project', plan => 'enterprise' }, $cookie)->{content})->{project_id};
foreach my $path ('session', 'projects', "projects/$project", "projects/$project/logs", "keys/$project", 'nothing')
{
	is(call('GET', $path, undef, $cookie)->{headers}{'cache-control'}, 'no-store', "GET $path: not to be kept" =~ s/[0-9a-f-]{36}/.../r);
}

# --- a session that another one takes the place of

my $next = sign_in('alice', undef, $cookie)->{cookie};
is(call('GET', 'session', undef, $next)->{status}, 200, 'who signs in once more has another session');
is(call('GET', 'session', undef, $cookie)->{status}, 401, 'and the former one is over');

# --- a database that is slow signs nobody out

my $holder = $site->node->background_psql('regpilot');
$holder->query_safe('BEGIN; LOCK TABLE regpilot.plan');
my $seen = $site->in_parallel(40, sub { return { call('GET', 'projects', undef, $next)->{status} => 1 } });
is_deeply($seen, { 503 => 40 }, 'calls that wait for too long, or are too many');
$holder->query_safe('COMMIT');
$holder->quit;
is(call('GET', 'projects', undef, $next)->{status}, 200, 'and the session goes on');

# --- guessing, side by side

$seen = $site->in_parallel(24, sub { my $answer = sign_in('bob', "guess $_[0]"); return { $answer->{status} => 1 } });
cmp_ok($seen->{401}, '<=', 4, 'many guesses at once are no more guesses') or diag(explain $seen);
is($seen->{401} + $seen->{429}, 24, 'the others have to wait');

# --- nor do they take the places of others

$seen = $site->in_parallel(
	24,
	sub {
		my ($i) = @_;
		my %count;
		$count{ $i ? sign_in("nobody $i $_", 'x')->{status} : sign_in('alice', undef, $next)->{status} }++ foreach 1 .. 2;
		return \%count;
	});
is_deeply($seen, { 200 => 2, 401 => 46 }, 'while others guess one can sign in');

# --- nor does it help to come from another place or to ask for many

is(sign_in_from('2001:db8:0:1::' . $_, 'carol', 'x'), $_ <= 4 ? 401 : 429, "an address of one's own network, $_") foreach 1 .. 5;
is(sign_in_from('2001:db8:0:2::1', 'carol', 'x'), 401, 'another network');
is(sign_in_from("203.0.113.$_", 'dave', 'x'), 401, "an address, $_") foreach 1 .. 5;

my $wait;
do { $wait = sign_in('bob', 'x'); sleep 0.1 } until ($wait->{headers}{'retry-after'} // 0) >= 8;
my $begun = time;
$site->in_parallel(60, sub { sign_in("$_[0] and $_", 'x') foreach 1 .. 5; return {} });
SKIP:
{
	skip 'this machine is too slow', 1 if time - $begun > $wait->{headers}{'retry-after'} - 1;
	is(sign_in('bob', 'x')->{status}, 429, 'failures are not forgotten for those of 300 other roles');
}

# --- a key that was moved to another project

my ($key_id, $key) = $site->create_key(permissions => [ 'gateway:write', 'logs:read', 'analytics:read' ]);
my ($moved_id, $moved) = $site->create_key(permissions => ['gateway:write']);
is($site->chat($moved)->{status}, 200, 'a key is used');
wait_until('its call in the log', sub { $site->get('/api/logs', "X-API-Key: $key")->{body} =~ /$moved_id/ });
$site->sql("UPDATE regpilot.api_key SET project_id = '$project', name = 'the name elsewhere' WHERE id = '$moved_id'");
unlike($site->get("/api/$_", "X-API-Key: $key")->{body}, qr/elsewhere/, "/api/$_: a key's name in another project is not told") foreach qw(logs analytics);

is($site->end_responder('TERM'), 0, 'the responder ends');

done_testing();
